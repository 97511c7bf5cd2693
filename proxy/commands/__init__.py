"""What each command is, as data: where its keys are, whether it writes, and what the proxy does with it.

    servers' COMMAND reply --+                              name ---> lookup ---> Command: class, flags, arity
                             +--> rows --> CommandTable --> arguments ---> keys ---> which of them are keys
    table (built in) --------+      ^
                                    '-- dispositions: forward, split, answer ourselves, refuse

generate writes table from live servers, by hand. rows and dispositions are Python, read when a table is built; lookup
and keys are compiled, and called by the data path for every command.
"""
