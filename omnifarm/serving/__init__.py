"""Answering, drawing and editing with learned concepts, in process: no Ray and no HTTP in here."""
