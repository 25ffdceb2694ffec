//! Who is at the other end of a connection or a call, and what that allows.
//!
//! * [`identity`]: what a certificate says about its owner.
//! * [`tls`]: connections between nodes, from operators and from clients, and the files that
//!   they take their certificates from.
//! * [`tokens`]: signed tokens by which a product lets its users in.
//! * [`keys`]: credentials of a product's own servers.
//! * [`caller`]: what comes of these, and what a caller may do.
//!
//! No state is kept beyond what the files say; whoever owns a [`tls::Tls`] or a
//! [`caller::Credentials`] has them read again from time to time. Nothing here logs a secret, and
//! no error text holds one.

pub mod caller;
pub mod identity;
pub mod keys;
pub mod tls;
pub mod tokens;

#[cfg(test)]
mod testing;
