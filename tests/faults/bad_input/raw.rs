//! gRPC with message bytes of one's own making.

use std::marker::PhantomData;

use anyhow::Result;
use bytes::{BufMut as _, Bytes};
use carillon_proto::USER_METADATA_KEY;
use carillon_tests::rpc;
use futures_util::Stream;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::{Request, Status, Streaming};

/// Sends bytes as they are and decodes `U`.
struct RawCodec<U>(PhantomData<U>);

struct RawEncoder;

struct MessageDecoder<U>(PhantomData<U>);

impl<U: Message + Default + Send + 'static> Codec for RawCodec<U> {
    type Encode = Bytes;
    type Decode = U;
    type Encoder = RawEncoder;
    type Decoder = MessageDecoder<U>;

    fn encoder(&mut self) -> RawEncoder {
        RawEncoder
    }

    fn decoder(&mut self) -> MessageDecoder<U> {
        MessageDecoder(PhantomData)
    }
}

impl Encoder for RawEncoder {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl<U: Message + Default> Decoder for MessageDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let message = U::decode(buffer).map_err(|error| Status::data_loss(error.to_string()))?;
        Ok(Some(message))
    }
}

/// A length-delimited protobuf field.
pub fn field(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = vec![tag << 3 | 2];
    prost::encoding::encode_varint(value.len() as u64, &mut out);
    out.extend_from_slice(value);
    out
}

/// Calls a unary method with any bytes.
pub async fn unary<U>(
    address: &str,
    method: &'static str,
    user: &str,
    body: Vec<u8>,
) -> Result<Result<U, Status>>
where
    U: Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(rpc::endpoint(address)?.connect().await?);
    grpc.ready().await?;
    let mut request = Request::new(Bytes::from(body));
    request
        .metadata_mut()
        .insert(USER_METADATA_KEY, MetadataValue::try_from(user)?);
    let outcome = grpc
        .unary(
            request,
            PathAndQuery::from_static(method),
            RawCodec(PhantomData),
        )
        .await;
    Ok(outcome.map(tonic::Response::into_inner))
}

/// Opens a bidirectional stream of any bytes.
pub async fn stream<U>(
    address: &str,
    method: &'static str,
    frames: impl Stream<Item = Bytes> + Send + 'static,
) -> Result<Result<Streaming<U>, Status>>
where
    U: Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(rpc::endpoint(address)?.connect().await?);
    grpc.ready().await?;
    let method = PathAndQuery::from_static(method);
    let outcome = grpc
        .streaming(Request::new(frames), method, RawCodec(PhantomData))
        .await;
    Ok(outcome.map(tonic::Response::into_inner))
}
