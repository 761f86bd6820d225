"""The web console over the admin API and Prometheus."""
