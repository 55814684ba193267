"""Every family of configs of both zoos, tried with the plugin: `make zoo`."""
