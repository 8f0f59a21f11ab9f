//! ttrpc-peer serve PATH: a service with one method of each form, until standard input ends.
//! ttrpc-peer call PATH: calls the same service elsewhere, and prints what came, a line for each call.

use async_trait::async_trait;
use protobuf::well_known_types::wrappers::StringValue;
use protobuf::Message;
use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;
use ttrpc::r#async::{
    Client, ClientStream, ClientStreamReceiver, ClientStreamSender, MethodHandler, Server, ServerStream,
    ServerStreamReceiver, ServerStreamSender, Service, StreamHandler, StreamInner, TtrpcContext,
};
use ttrpc::{get_status, Code, Error, Request, Response, Result};

const SERVICE: &str = "t.Echo";

fn text(value: impl Into<String>) -> StringValue {
    StringValue { value: value.into(), ..Default::default() }
}

fn others(error: impl std::fmt::Display) -> Error {
    Error::Others(error.to_string())
}

fn good(message: &StringValue) -> Result<Response> {
    let mut response = Response::new();
    response.set_status(get_status(Code::OK, ""));
    response.payload = message.write_to_bytes().map_err(others)?;
    Ok(response)
}

/// Answers the text, its metadata `name` and its time limit in seconds.
struct Say;
/// Answers NOT_FOUND.
struct Fail;
/// Answers all requests in one.
struct Gather;
/// Answers word by word.
struct Split;
/// Answers each request.
struct Talk;

#[async_trait]
impl MethodHandler for Say {
    async fn handler(&self, ctx: TtrpcContext, request: Request) -> Result<Response> {
        let said = StringValue::parse_from_bytes(&request.payload).map_err(others)?;
        let name = ctx.metadata.get("name").map(|values| values.join("+")).unwrap_or_default();
        good(&text(format!("{} {name} {}", said.value, ctx.timeout_nano / 1_000_000_000)))
    }
}

#[async_trait]
impl MethodHandler for Fail {
    async fn handler(&self, _: TtrpcContext, _: Request) -> Result<Response> {
        let mut response = Response::new();
        response.set_status(get_status(Code::NOT_FOUND, "no such thing"));
        Ok(response)
    }
}

#[async_trait]
impl StreamHandler for Gather {
    async fn handler(&self, _: TtrpcContext, inner: StreamInner) -> Result<Option<Response>> {
        let mut stream: ServerStreamReceiver<StringValue> = ServerStreamReceiver::new(inner);
        let mut all = String::new();
        while let Some(part) = stream.recv().await? {
            all.push_str(&part.value);
        }
        good(&text(all)).map(Some)
    }
}

#[async_trait]
impl StreamHandler for Split {
    async fn handler(&self, _: TtrpcContext, mut inner: StreamInner) -> Result<Option<Response>> {
        let whole = StringValue::parse_from_bytes(&inner.recv().await?).map_err(others)?;
        let stream = ServerStreamSender::new(inner);
        for part in whole.value.split_whitespace() {
            stream.send(&text(part)).await?;
        }
        Ok(None)
    }
}

#[async_trait]
impl StreamHandler for Talk {
    async fn handler(&self, _: TtrpcContext, inner: StreamInner) -> Result<Option<Response>> {
        let mut stream: ServerStream<StringValue, StringValue> = ServerStream::new(inner);
        while let Some(part) = stream.recv().await? {
            stream.send(&part).await?;
        }
        Ok(None)
    }
}

async fn serve(path: &str) -> Result<()> {
    let mut methods: HashMap<String, Box<dyn MethodHandler + Send + Sync>> = HashMap::new();
    methods.insert("Say".into(), Box::new(Say));
    methods.insert("Fail".into(), Box::new(Fail));
    let mut streams: HashMap<String, Arc<dyn StreamHandler + Send + Sync>> = HashMap::new();
    streams.insert("Gather".into(), Arc::new(Gather));
    streams.insert("Split".into(), Arc::new(Split));
    streams.insert("Talk".into(), Arc::new(Talk));
    let services = HashMap::from([(SERVICE.to_string(), Service { methods, streams })]);
    let mut server = Server::new().bind(&format!("unix://{path}"))?.register_service(services);
    server.start().await?;
    println!("ready");
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new()))
        .await
        .map_err(others)?
        .map_err(others)?;
    server.shutdown().await
}

fn request(method: &str, message: Option<&str>) -> Result<Request> {
    let mut request = Request { service: SERVICE.into(), method: method.into(), ..Default::default() };
    if let Some(message) = message {
        request.payload = text(message).write_to_bytes().map_err(others)?;
    }
    Ok(request)
}

async fn call(path: &str) -> Result<()> {
    let client = Client::connect(&format!("unix://{path}"))?;
    let said = client.request(request("Say", Some("hello"))?).await?;
    println!("{}", StringValue::parse_from_bytes(&said.payload).map_err(others)?.value);
    for method in ["Fail", "Nope"] {
        match client.request(request(method, Some("x"))?).await {
            Err(Error::RpcStatus(status)) => println!("{:?} {}", status.code.enum_value_or_default(), status.message),
            other => println!("{other:?}"),
        }
    }
    gather(&client).await?;
    split(&client).await?;
    talk(&client).await
}

async fn gather(client: &Client) -> Result<()> {
    let inner = client.new_stream(request("Gather", None)?, true, false).await?;
    let mut stream: ClientStreamSender<StringValue, StringValue> = ClientStreamSender::new(inner);
    for part in ["a", "b", "c"] {
        stream.send(&text(part)).await?;
    }
    println!("{}", stream.close_and_recv().await?.value);
    Ok(())
}

async fn split(client: &Client) -> Result<()> {
    let inner = client.new_stream(request("Split", Some("one two"))?, false, true).await?;
    let mut stream: ClientStreamReceiver<StringValue> = ClientStreamReceiver::new(inner, client.clone());
    while let Some(part) = stream.recv().await? {
        println!("{}", part.value);
    }
    Ok(())
}

async fn talk(client: &Client) -> Result<()> {
    let inner = client.new_stream(request("Talk", None)?, true, true).await?;
    let mut stream: ClientStream<StringValue, StringValue> = ClientStream::new(inner);
    for part in ["x", "y"] {
        stream.send(&text(part)).await?;
        println!("{}", stream.recv().await?.value);
    }
    stream.close_send().await?;
    match stream.recv().await {
        Err(Error::Eof) => println!("end"),
        other => println!("{other:?}"),
    }
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", path] => serve(path).await,
        ["call", path] => call(path).await,
        _ => Err(others("usage: ttrpc-peer serve|call PATH")),
    };
    if let Err(error) = outcome {
        eprintln!("ttrpc-peer: {error}");
        std::process::exit(1);
    }
}
