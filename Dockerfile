# docker build -t redis-proxy .
# docker run --read-only -p 7617:7617 -v ./proxy.yaml:/etc/redis-proxy/proxy.yaml:ro redis-proxy
# In the mounted file the listener has to be 0.0.0.0:7617: the default, 127.0.0.1, is the container's own.

FROM python:3.13-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# The proxy and all it needs as wheels, so that the second stage needs neither a compiler nor the network.
RUN pip wheel --no-cache-dir --wheel-dir /wheels .

FROM python:3.13-slim-bookworm
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index --find-links /wheels redis-proxy-daemon \
    && useradd --system --uid 7617 --no-create-home --shell /usr/sbin/nologin redis-proxy
# Nothing is written at run time: pip has compiled the bytecode, logs go to stderr.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
USER 7617
EXPOSE 7617 9617
# /readyz answers 503 while no topology is known, which urlopen raises for.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9617/readyz', timeout=2)"]
# Exec form: the proxy is process 1 and gets SIGTERM itself; it starts no children that would need reaping.
ENTRYPOINT ["redis-proxy"]
CMD ["-c", "/etc/redis-proxy/proxy.yaml"]
