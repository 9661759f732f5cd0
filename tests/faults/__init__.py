"""The fault campaign: kills, signals, full disks, changed settings, bad values, hostile code and servers, seeded.

`python -m tests.faults --seed 0 --minutes 60` runs it and goes on where it was stopped. A column of its table is one
module with a function `case(rng, folder)`, which tries something once and says what did not hold.
"""
