//! The wire contract of Carillon, generated from `proto/`.
//!
//! * [`v1`]: what clients speak (`carillon.v1`).
//! * [`admin`]: what operators speak (`carillon.admin.v1`).
//! * [`internal`]: what nodes speak among themselves (`carillon.internal.v1`).

pub mod codec;

// The modules mirror the packages, because the generated code refers across them.
#[expect(clippy::allow_attributes, reason = "the generated code has some")]
mod carillon {
    pub mod v1 {
        tonic::include_proto!("carillon.v1");
    }
    pub mod admin {
        pub mod v1 {
            tonic::include_proto!("carillon.admin.v1");
        }
    }
    pub mod internal {
        pub mod v1 {
            tonic::include_proto!("carillon.internal.v1");
        }
    }
}

pub use carillon::admin::v1 as admin;
pub use carillon::internal::v1 as internal;
pub use carillon::v1;

/// The file descriptor set of all of the above, for gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/carillon.bin"));

/// The `ErrorInfo.domain` of every error.
pub const ERROR_DOMAIN: &str = "carillon";

/// The metadata key that names the calling user of a unary call.
pub const USER_METADATA_KEY: &str = "carillon-user";

/// The metadata key that names who asks an admin call, for the record only.
pub const ACTOR_METADATA_KEY: &str = "carillon-actor";
