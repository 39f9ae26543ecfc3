"""Text generation: the local engine, its sampler, caches and prefix memory."""
