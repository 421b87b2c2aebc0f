from hypothesis import settings

# A slow machine, or a busy one, is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
