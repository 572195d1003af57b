%%% Calls to be counted rather than timed, in a virtual machine under callgrind.
-module(bench_count).

-export([main/0]).

-define(LOOK_MS, 1).

-spec main() -> no_return().
main() ->
    Options = bench_work:options(),
    {ok, Pool} = macula_gateway_mesh:start_link(#{}),
    Address = {{127, 0, 0, 1}, bench_work:option("to", Options)},
    Node = <<1:256>>,
    {ok, Stream} = macula_gateway_mesh:get_or_create_connection(Pool, Node, Address),
    [Message | _] = bench_work:messages(bench_work:option("size", Options)),
    Call =
        case maps:get("what", Options) of
            "ets" ->
                bench_calls:ets_lookup();
            "echo" ->
                bench_calls:echo_call();
            "checkout" ->
                fun() -> macula_gateway_mesh:get_or_create_connection(Pool, Node, Address) end;
            "send" ->
                fun() -> macula_quic:send(Stream, Message) end;
            "async" ->
                fun() -> macula_gateway_mesh:send_async(Pool, Node, Address, Message) end
        end,
    repeat(Call, bench_work:option("times", Options)),
    ok = await_acknowledged(Pool),
    halt(0).

await_acknowledged(Pool) ->
    case macula_gateway_mesh:get_stats(Pool) of
        {ok, #{outstanding_messages := 0}} ->
            ok;
        {ok, _} ->
            timer:sleep(?LOOK_MS),
            await_acknowledged(Pool)
    end.

repeat(_Call, 0) ->
    ok;
repeat(Call, Left) ->
    _ = Call(),
    repeat(Call, Left - 1).
