# A Python web application.
PACKAGES=python3-flask
CONFIG=(--config.cmd python3 --config.cmd /app/app.py --config.exposedports 8000/tcp
    --config.user nobody --config.workingdir /app --config.env PYTHONDONTWRITEBYTECODE=1)
prepare() {
    mkdir -p "$1/app"
    cp "$(dirname "${BASH_SOURCE[0]}")/app.py" "$1/app/app.py"
}
