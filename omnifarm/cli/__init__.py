"""The command line: `omnifarm <noun> <verb>`."""
