//! Writes the CustomResourceDefinition to `imcluster.yaml` beside the crate, and its reference to
//! the documents.

use kube::CustomResourceExt;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let definition = serde_norway::to_string(&carillon_crds::ImCluster::crd())?;
    let reference = carillon_crds::reference::reference();
    for (path, text) in [
        ("imcluster.yaml", definition),
        ("../docs/reference-imcluster.md", reference),
    ] {
        let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
        std::fs::write(&path, text)?;
        println!("wrote {path}");
    }
    Ok(())
}
