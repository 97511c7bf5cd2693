"""What people run, unmodified, against the proxy: client libraries of many languages and frameworks built on them.

One folder per client: meta.json says how it is installed and started, the rest is its program; README.md tells more.
Called by: `make test-clients`; not part of `make test`, for it installs from PyPI, npm and Debian.
"""
