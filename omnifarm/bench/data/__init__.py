"""From a data folder to the list of everything that is asked."""
