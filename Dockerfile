# The HTTP service. A run directory is mounted when the container starts:
#
#   docker build -t recbole-sigma .
#   docker run -p 8000:8000 -v "$PWD/saved/SIGMA-...:/run-directory:ro" -v sessions:/sessions recbole-sigma
#
# torch's CPU build is much smaller: --build-arg PIP_EXTRA_INDEX_URL=URL names torch's index of CPU builds.
FROM python:3.11-slim AS build
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /source
RUN python -m venv /venv
COPY setup.cfg pyproject.toml constraints.txt README.md LICENSE MANIFEST.in ./
COPY properties properties
COPY recbole_sigma recbole_sigma
RUN /venv/bin/pip install --no-cache-dir --constraint constraints.txt '.[serve]'

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 serve && install --directory --owner=serve /sessions
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1 NUMBA_CACHE_DIR=/home/serve/numba
USER 1000
WORKDIR /home/serve
VOLUME /sessions
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["recbole-sigma", "serve", "--host=0.0.0.0"]
CMD ["--checkpoint=/run-directory", "--sessions=/sessions/sessions.db"]
