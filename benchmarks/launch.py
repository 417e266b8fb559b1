"""Runs a command and prints its seconds, exit code and peak memory (of its largest process, in kilobytes) as JSON.

    python -S launch.py COMMAND...

Linux counts the memory of the process that starts a command as the command's own, up to its first instruction. A benchmark that has
loaded torch would find its own size in every small command: so it starts this one, which is small itself.
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
