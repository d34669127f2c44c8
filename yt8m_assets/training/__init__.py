"""How a model is trained: knows neither a recipe nor the graph, writes nothing but checkpoints and a model's files.

Where to look:
    job         what one run is told, its parts put together, its model published
    trainer     the loop: step, log, validate, save
    validate    when the hold-out is scored, which weights are kept and which published;  evaluate: what a score is
    checkpoint  where and how a checkpoint is written and found again
    step        one optimiser step;  loss, optimizer (and learning rate), averages, recompute, randomness serve it
    data        what is read;  model_files: what is written
    distributed several processes;  interruption: a signal to stop
"""
