"""``perijove up``: the processes of a deployment on one host, kept running."""
