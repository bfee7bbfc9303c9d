"""From replies to numbers, one measure a module; none of them knows who replied."""
