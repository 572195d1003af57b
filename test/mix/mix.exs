defmodule MeshUser.MixProject do
  @moduledoc "A Mix project that depends on this one as its users do."
  use Mix.Project

  def project do
    [
      app: :mesh_user,
      version: "0.1.0",
      deps: [{:macula_gateway_mesh, path: "../..", manager: :rebar3}]
    ]
  end

  def application, do: [extra_applications: [:logger]]
end
