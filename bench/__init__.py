"""The comparison behind every figure this project prints: the cluster itself, this proxy and Envoy, in one run.

`bench/run.py` is the command line; nothing under proxy/ imports this package. See bench/README.md for the method.
"""
