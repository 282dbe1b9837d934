"""The range search over sketches of two clusters: neardup.search.candidates.search against FAISS, one thread each.

python benchmarks/kernel.py
"""

import time
from types import SimpleNamespace

import measure
import numpy as np


def main():
    """Measure both at several sizes and keep the figures."""
    import faiss
    from threadpoolctl import threadpool_limits

    from neardup.search.candidates import lay_out, search, swapped

    threadpool_limits(1)
    faiss.omp_set_num_threads(1)
    rng, table = np.random.default_rng(0), []
    for n_rows in (100, 300, 1000, 4000):
        x, y = (rng.standard_normal((n_rows, 65)).astype(np.float32) * 0.09 for _ in "xy")
        y[:4] = x[:4] + 0.01
        sides = [SimpleNamespace(sketches=s, layout=lay_out(s, 32), left=swapped(lay_out(s, 32))) for s in (x, y)]
        index = faiss.IndexFlatL2(65)

        def with_faiss(index=index, x=x, y=y):
            index.reset()
            index.add(y)
            return len(index.range_search(x, 0.04)[2])

        def with_ours(sides=sides):
            return sum(len(i) for i, _, _ in search(*sides, {"first": 0.2, "sketches": 0.2}))

        figures = {"rows": n_rows}
        for name, run in (("faiss", with_faiss), ("ours", with_ours)):
            found, times = run(), []
            for _ in range(15):
                started = time.perf_counter()
                run()
                times.append(time.perf_counter() - started)
            figures |= {f"{name}_ns_per_distance": round(np.median(times) / n_rows**2 * 1e9, 3), f"{name}_found": found}
        figures["times_faster"] = round(figures["faiss_ns_per_distance"] / figures["ours_ns_per_distance"], 2)
        print(figures, flush=True)
        table.append(figures)
    measure.save("kernel", {"sizes": table})


if __name__ == "__main__":
    main()
