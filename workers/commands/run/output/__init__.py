"""What a run writes and shows.

output_file.py   one row for each input row; read again by a run that continues
state.py         what a run keeps beside its output until it has finished
tally.py         what has been done so far (latency.py: its percentiles)
progress.py      how far the run is, on stderr
summary.py       what it has done, at its end
"""
