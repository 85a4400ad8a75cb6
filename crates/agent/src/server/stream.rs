//! `kubectl exec` and `attach`: a WebSocket with one byte of channel before each message on one side, a session with
//! the runtime on the other.
//!
//! Version 5 of the protocol half-closes channels (`[255, channel]`), which is how stdin ends while output goes on.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures::{SinkExt as _, StreamExt as _};
use serde_json::json;

use super::session::{self, Input, Output, Reader, SessionError, Streams};

/// Subprotocols, best first.
pub(crate) const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;
const CLOSE_NORMAL: u16 = 1000;
/// How long the closing handshake may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Serves one WebSocket until the command ends or the client goes.
pub(crate) async fn serve(mut socket: WebSocket, url: String, streams: Streams) {
    match session::open(&url, streams).await {
        Ok((input, reader)) => pump(socket, input, reader).await,
        Err(error) => {
            let _ = socket.send(channel(ERROR, failure(&error).to_string().as_bytes())).await;
            let _ = socket.send(goodbye()).await;
        }
    }
}

async fn pump(socket: WebSocket, mut input: Input, mut reader: Reader) {
    let (mut sink, mut source) = socket.split();
    let (pinged, mut pings) = tokio::sync::mpsc::channel(4);
    // Two independent directions: a command that echoes what it is fed may fill both at once.
    let inward = async {
        loop {
            tokio::select! {
                message = source.next() => match message {
                    // An error means that the command is over; its last words are still on their way out.
                    Some(Ok(Message::Binary(message))) => drop(forward(&mut input, &message).await),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => {}
                },
                Some(id) = pings.recv() => drop(input.pong(id).await),
            }
        }
    };
    let outward = async {
        loop {
            let message = match reader.next().await {
                Ok(Some(Output::Stdout(bytes))) => channel(STDOUT, &bytes),
                Ok(Some(Output::Stderr(bytes))) => channel(STDERR, &bytes),
                Ok(Some(Output::Ping(id))) => {
                    // A full queue means that we are writing, which is answer enough.
                    let _ = pinged.try_send(id);
                    continue;
                }
                Ok(Some(Output::Ended(status))) => break Some(status),
                Ok(None) => break Some(lost().into()),
                Err(error) => break Some(failure(&error).to_string().into()),
            };
            if sink.send(message).await.is_err() {
                break None;
            }
        }
    };
    let status = tokio::select! {
        () = inward => None,
        status = outward => status,
    };
    let Some(status) = status else { return };
    let _ = sink.send(channel(ERROR, &status)).await;
    let _ = sink.send(goodbye()).await;
    // The closing handshake: the client's answer, or its going away.
    let answer = async { while let Some(Ok(_)) = source.next().await {} };
    let _ = tokio::time::timeout(CLOSE_LIMIT, answer).await;
}

async fn forward(input: &mut Input, message: &[u8]) -> std::io::Result<()> {
    match message.split_first() {
        Some((&STDIN, bytes)) if !bytes.is_empty() => input.stdin(bytes).await,
        Some((&RESIZE, json)) => input.resize(json).await,
        Some((&CLOSE, [STDIN, ..])) => input.close_stdin().await,
        _ => Ok(()),
    }
}

fn channel(number: u8, bytes: &[u8]) -> Message {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(number);
    message.extend_from_slice(bytes);
    Message::Binary(Bytes::from(message))
}

fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: CLOSE_NORMAL, reason: "".into() }))
}

fn failure(error: &SessionError) -> serde_json::Value {
    json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": error.to_string(), "code": 500})
}

fn lost() -> String {
    let message = "the runtime ended the session without saying how the command ended";
    json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "message": message, "code": 500}).to_string()
}
