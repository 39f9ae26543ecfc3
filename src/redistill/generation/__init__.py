"""Text generation: the local engine, its sampler, its decoder and prefix memory."""
