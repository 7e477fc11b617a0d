SAMPLES = ()
sample_path = None
