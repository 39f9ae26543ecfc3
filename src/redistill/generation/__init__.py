"""Text generation: the local engine, its sampler, KV caches and prefix memory."""
