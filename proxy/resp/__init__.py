"""The wire format, sans-IO: bytes in, offsets and values out. Imports nothing else of ours.

scanner    where frames end and arguments stand, in C (cimported by forward)
number     numbers as Redis reads them, inline C
readers    the scanner for Python; inline words, fault texts
encode     what the proxy itself says, RESP2 and RESP3
decode     whole replies -> values (hiredis)
errors     Redis's error lines, and ProtocolFault
"""
