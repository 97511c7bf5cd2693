"""Where the measured values of this project come from: the cluster itself, this proxy and Envoy, compared in one run.

`bench/run.py` is the command line; nothing under proxy/ imports this package. See bench/README.md for the method.
"""
