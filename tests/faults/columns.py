"""The columns of the table."""

from . import changes, disks, kills, latex, launched, programs, runner, servers, values
from .campaign import Column

COLUMNS = {
    "kills": Column(kills.case, share=10),
    "two processes": Column(launched.case, share=3),
    "runner": Column(runner.case, share=4),
    "disks": Column(disks.case, share=4),
    "changes": Column(changes.case, share=6, most=changes.MOST),
    "values": Column(values.case, share=1, most=values.MOST),
    "programs": Column(programs.case, share=3),
    "latex": Column(latex.case, share=1),
    "servers": Column(servers.case, share=2),
}
