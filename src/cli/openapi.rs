//! `facewise openapi`: writes what `openapi/openapi.json` holds.

pub(crate) fn run() -> anyhow::Result<()> {
    print!("{}", facewise::api::openapi()?);
    Ok(())
}
