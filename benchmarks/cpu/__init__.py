"""The engine on the processor, beside the reference and the machine's limits: `flashelmo bench`.

suite.py    what is measured, and who takes part
speed.py    bulk text and single sentences
cost.py     memory and load time, in fresh processes
host.py     text to schedules, on one core and on more; where the engine's time goes
errors.py   how far each precision lies from the exact vectors
tables.py   its tables and plot in documents
"""
