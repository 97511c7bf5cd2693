"""The wire format, sans-IO: bytes in, offsets and values out. Imports nothing else of ours.

    commands of clients --> scanner --> spans of the arguments --> data path
      inline lines -------> inline ---> the same command as a frame, then as above
    replies of nodes -----> scanner --> where the frame ends ----> data path, which passes the bytes on
                            decode ---> values (hiredis)           for handshakes with nodes, and tests
    what the proxy says <-- encode, errors (Redis's error lines; ProtocolFault)

scanner and inline are compiled and cimported by forward; readers is the same for Python.
number reads numbers as Redis does (inline C). glob matches its patterns.
"""
