"""The configuration, from a YAML file to Settings that never change.

    file.read         a file and what it includes -> plain values, with the file and line of each   (Source)
    proxy.options     lays the command line over them
    faults.checked    models.Settings of these values, or ConfigFaults with every fault at once
    models            the options: section, kind, default, text; and which of them exclude one another
    values, units     what a single value may be: durations, sizes, secrets, numbers
    diff.diff         old Settings, new Settings -> the options that changed, for the log and the reload

Only the main process reads it: workers get plain values (proxy.ipc.settings).
"""

import os

# pydantic would look for plugins in the metadata of every package that is installed, each time the daemon starts.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
