"""A finished run as a page, a text and a table file."""
