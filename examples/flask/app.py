"""Two pages: a greeting and a sum."""

from flask import Flask, jsonify, request

app = Flask(__name__)


@app.get("/")
def greet():
    return f"hello {request.args.get('name', 'world')}\n"


@app.post("/sum")
def add():
    return jsonify(total=sum(request.get_json()["numbers"]))


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=8000)
