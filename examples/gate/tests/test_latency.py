"""The engine that ships is as fast as the baseline says: the fixture times it, records it and holds it to that."""


def test_latency(niwaki_engine, benchmark):
    benchmark(niwaki_engine)
