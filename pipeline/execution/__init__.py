"""Run many independent tasks: devices, worker processes, a Ray cluster, job arrays and progress messages."""
