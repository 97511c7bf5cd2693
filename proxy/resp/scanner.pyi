# Nothing here is visible from Python: see scanner.pxd, and proxy.resp.readers for the same in Python.
