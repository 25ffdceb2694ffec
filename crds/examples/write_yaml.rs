//! Writes the CustomResourceDefinition to `imcluster.yaml` beside the crate.

use kube::CustomResourceExt;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/imcluster.yaml");
    std::fs::write(
        path,
        serde_norway::to_string(&carillon_crds::ImCluster::crd())?,
    )?;
    println!("wrote {path}");
    Ok(())
}
