"""The JSON that goes over the wire: what each endpoint takes and gives back, in OpenAI's shapes with our additions.

Only shape and plain ranges are checked here; what needs the engine (sizes, unknown concepts) is checked there.
"""
