defmodule MeshUser.PoolTest do
  @moduledoc "The README's Elixir, as a user's application has it, to a real peer."
  use ExUnit.Case

  test "the application brings the library, and a supervised pool reaches a peer" do
    {peer, port} = start_peer()
    assert File.exists?(Application.app_dir(:macula_gateway_mesh, "priv"))
    children = [{:macula_gateway_mesh, %{max_mesh_connections: 10}}]
    supervisor = start_supervised!(%{id: :pool, start: start_link(children)})
    assert [{:macula_gateway_mesh, pool, :worker, _}] = Supervisor.which_children(supervisor)
    {node, address} = {<<2::256>>, "127.0.0.1:#{port}"}

    assert {:ok, stream} = :macula_gateway_mesh.get_or_create_connection(pool, node, address)
    assert :ok = :macula_quic.send(stream, frame(0))
    assert :ok = :macula_gateway_mesh.send_async(pool, node, address, frame(1))
    assert {:stats, counts} = command(peer, "wait messages 2 20000")
    assert %{distinct: 2, corrupt: 0, connections_opened: 1} = counts
  end

  test "options may be a keyword list" do
    children = [{:macula_gateway_mesh, [max_mesh_connections: 7]}]
    start_supervised!(%{id: :pool, start: start_link(children)})
    assert {:ok, %{limit: 7}} = :macula_gateway_mesh.get_stats(:macula_gateway_mesh)
  end

  # A protocol frame that the peer knows by its number.
  defp frame(index), do: <<1, 1, 0, 0, 8::32, index::64>>

  defp start_link(children) do
    {Supervisor, :start_link, [children, [strategy: :one_for_one]]}
  end

  defp start_peer do
    program = System.fetch_env!("MACULA_PEER")
    port = Port.open({:spawn_executable, program}, [:binary, :exit_status, line: 65_536])
    {:ready, number} = answer(port)
    {port, number}
  end

  defp command(port, line) do
    true = Port.command(port, line <> "\n")
    answer(port)
  end

  # Each answer is one Erlang term.
  defp answer(port) do
    receive do
      {^port, {:data, {:eol, line}}} ->
        {:ok, tokens, _} = :erl_scan.string(String.to_charlist(line))
        {:ok, term} = :erl_parse.parse_term(tokens)
        term

      {^port, {:exit_status, status}} ->
        flunk("the peer has ended: #{status}")
    after
      30_000 -> flunk("the peer is silent")
    end
  end
end
