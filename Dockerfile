# The built book and JupyterLab, for a reader who has Docker and nothing else:
#
#     docker build -t minivllm-book .
#     docker run --rm -p 8000:8000 -p 8888:8888 minivllm-book      (it prints both addresses)
#
# and an image for the workers of a cluster: docker build --target cluster -t minivllm-cluster .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

# --- the package alone, with Dask --------------------------------------------------------------
FROM base AS cluster
WORKDIR /src
COPY pyproject.toml README.md LICENSE CHANGELOG.md MANIFEST.in ./
COPY minivllm minivllm
RUN pip install ".[cluster]" && useradd --create-home --uid 1000 reader
USER reader
WORKDIR /home/reader
CMD ["dask", "--help"]

# --- everything, and the site built with it ----------------------------------------------------
FROM base AS build
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev npm \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/book
COPY pyproject.toml requirements.txt README.md LICENSE CHANGELOG.md MANIFEST.in ./
COPY tools tools
COPY minivllm minivllm
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --extra-index-url https://download.pytorch.org/whl/cpu -r requirements.txt \
    && /opt/venv/bin/python tools/get_model.py
ENV PATH=/opt/venv/bin:$PATH
COPY . .
RUN jupyter-book build . -W --keep-going && rm -rf _build/.jupyter_cache _build/.doctrees _build/jupyter_execute

# --- what runs ---------------------------------------------------------------------------------
FROM base AS book
# The engine compiles its kernels when it first starts.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 reader
COPY --from=build /opt/venv /opt/venv
COPY --from=build --chown=reader:reader /opt/book /opt/book
RUN install -D -m 644 /opt/book/tools/lab-overrides.json /opt/venv/share/jupyter/lab/settings/overrides.json
ENV PATH=/opt/venv/bin:$PATH PYTHONPATH=/opt/book
WORKDIR /opt/book
USER reader
EXPOSE 8000 8888
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s CMD ["python", "tools/container.py", "--healthy"]
CMD ["python", "tools/container.py"]
