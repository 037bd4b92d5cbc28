"""What the endpoint is over HTTP: routes, their shapes, keys, limits, errors and the page."""
