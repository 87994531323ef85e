"""Processes of this machine, as /proc shows them."""

from contextlib import suppress
from pathlib import Path

LISTENS = "0A"  # state of a socket in /proc/net/tcp


def all_processes() -> list[int]:
    """The ids of all processes."""
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def session(leader: int) -> dict[int, str]:
    """The living processes of a session: id and command line."""
    commands = {}
    for pid in all_processes():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
        except OSError:  # it ended meanwhile
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            commands[pid] = command
    return commands


def listening_addresses(leader: int) -> set[str]:
    """The addresses, as hexadecimal numbers and ports, at which the processes of a session listen."""
    sockets = set()
    for pid in session(leader):
        with suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    sockets.add(str(descriptor.readlink()))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENS and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1])
    return found
