"""The fault campaign: kills, full disks, changed settings, bad values, hostile code and servers, all seeded.

`python -m tests.faults --seed 0 --minutes 60` runs it and goes on where it was stopped. A column of its table
is a module with a function `case(rng, folder, number)`, which tries something and says what did not hold.
"""
