"""Runs a command and prints its seconds, exit code and peak memory (of its largest process, in kilobytes) as JSON.

    python -S launch.py COMMAND...

Until a command's first instruction, Linux counts the memory of the process that starts it as the command's own. A benchmark that has loaded
torch would report its own size for every small command, so it starts this small program instead.
"""

import json
import os
import sys
import time

if __name__ == "__main__":
    started = time.perf_counter()
    child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    _, status, usage = os.wait4(child, 0)
    print(json.dumps([time.perf_counter() - started, os.waitstatus_to_exitcode(status), usage.ru_maxrss]))
