"""The endpoint on Ray Serve: the application, its replicas, and the proxy before them."""
