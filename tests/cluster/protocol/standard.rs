//! The standard services: `grpc.health.v1` and reflection.

use anyhow::{Context as _, Result};
use carillon_tests::rpc;
use tokio_stream::once;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::cast::Cast;

#[tokio::test]
async fn health_of_each_service() -> Result<()> {
    let cast = Cast::new().await?;
    for node in 1..=3 {
        let channel = rpc::endpoint(cast.address(node))?.connect().await?;
        let mut health = HealthClient::new(channel);
        for service in ["", "carillon.v1.Chat", "carillon.admin.v1.Admin"] {
            let request = HealthCheckRequest {
                service: service.to_owned(),
            };
            let answer: HealthCheckResponse = health.check(request).await?.into_inner();
            assert_eq!(
                answer.status(),
                ServingStatus::Serving,
                "{service:?} of node {node}"
            );
        }
        let request = HealthCheckRequest {
            service: "nothing".to_owned(),
        };
        let outcome = health.check(request).await;
        assert_eq!(
            outcome.err().map(|status| status.code()),
            Some(Code::NotFound)
        );
    }
    Ok(())
}

async fn reflect(cast: &Cast, request: MessageRequest) -> Result<MessageResponse> {
    let channel = rpc::endpoint(cast.address(1))?.connect().await?;
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    };
    let answers = ServerReflectionClient::new(channel)
        .server_reflection_info(once(request))
        .await;
    let answer: Option<ServerReflectionResponse> = answers?.into_inner().message().await?;
    answer
        .and_then(|answer| answer.message_response)
        .context("no answer")
}

#[tokio::test]
async fn reflection_knows_the_services() -> Result<()> {
    let cast = Cast::new().await?;
    let answer = reflect(&cast, MessageRequest::ListServices(String::new())).await?;
    let MessageResponse::ListServicesResponse(list) = answer else {
        anyhow::bail!("{answer:?}");
    };
    let names: Vec<String> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for name in [
        "carillon.v1.Chat",
        "carillon.admin.v1.Admin",
        "grpc.health.v1.Health",
    ] {
        assert!(
            names.iter().any(|known| known == name),
            "{name} is not in {names:?}"
        );
    }
    for symbol in [
        "carillon.v1.Chat",
        "carillon.v1.Message",
        "carillon.admin.v1.Admin",
    ] {
        let answer = reflect(
            &cast,
            MessageRequest::FileContainingSymbol(symbol.to_owned()),
        )
        .await?;
        let MessageResponse::FileDescriptorResponse(files) = answer else {
            anyhow::bail!("{symbol}: {answer:?}");
        };
        assert!(!files.file_descriptor_proto.is_empty());
    }
    Ok(())
}
