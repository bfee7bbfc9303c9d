"""A small drawn world, and a backbone of seven million parameters that has grown up in it."""
